"""From the rows that people bring to token ids, packed and in the order of training; never imports torch."""
