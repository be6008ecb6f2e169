"""The kinds of layers: a file each, with what the kind computes with, holds, costs, keeps and can be adapted in.

A layer of an architecture is made of one or two of these sublayers: a mixer (attention, or a recurrence) and a feed-forward
part (dense, or experts). A new kind is a new file that follows `sublayer.Sublayer`, and a kernel where it computes something
that no kernel does yet. torch and megatron-core are imported only where modules are made.
"""
