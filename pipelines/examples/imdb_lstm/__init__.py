"""An LSTM on the IMDB reviews."""
