"""Which directions and heads make a model refuse, and what steering gains and costs."""
