"""`bisect`: the first bad pass, then the first bad rewrite, by models with a part of them."""
