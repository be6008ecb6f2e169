"""The local executor: the stages of a plan run one after the other on this machine."""
