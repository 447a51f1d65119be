"""Converters: foreign formats to documents, a module each, on one frame."""
