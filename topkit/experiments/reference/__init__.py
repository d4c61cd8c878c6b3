"""The reference model's recipe: tokenizer, mixture, training, held-out scores."""
