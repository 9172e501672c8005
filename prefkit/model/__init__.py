"""Model-side pieces: the fused head, the reference policy and its cache."""
