"""A recurrent network on the IMDB reviews."""
