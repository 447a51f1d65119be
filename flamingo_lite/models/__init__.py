"""The model: a vision encoder, a connector and a language model, joined; what trains; building it from a
config.
"""
