"""Steps: what a manifest says, what a config compiles to, and how the stages are run; never imports torch."""
