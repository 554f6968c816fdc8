"""τ²-bench's retail store: 500 customers, 1,000 orders, 50 products."""
