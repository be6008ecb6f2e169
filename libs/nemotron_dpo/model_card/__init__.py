"""What goes with an exported model when it is handed on: a model card, and the way to the Hugging Face hub."""
