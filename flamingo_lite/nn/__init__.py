"""The pieces of the join as plain torch modules: connectors, gated cross-attention, masks, the media cache."""
