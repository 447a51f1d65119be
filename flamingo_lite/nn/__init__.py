"""The pieces of the join as plain torch modules: resampler, gated cross-attention, masks, the media cache."""
