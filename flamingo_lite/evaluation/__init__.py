"""Few-shot evaluation: what is asked, how it is scored, how sure the figures are, and the report."""
