"""From measurements to a verdict: which candidates meet the budget, and which is selected."""
