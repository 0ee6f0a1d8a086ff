"""How good a circuit is: faithfulness, completeness, minimality, stability, overlap."""
