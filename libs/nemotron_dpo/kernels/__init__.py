"""What a policy computes besides matrix products, on plain tensors: attention over packed pairs, norms, the activation, rotary
positions, logits with what is kept of them, gradients added to a sum.

`protocol` is the table of members that a backend fills in. There are three backends: `torch_ops` has every member, by torch's
own operations; `c` replaces members on a CPU, `gpu` on a GPU. `choice` decides which one a machine gets and imports no torch;
`chosen` decides it once for the process, builds it, and says why where it is not the fastest. The other modules here are what a
model calls: differentiable functions that ask the chosen table and know no backend.

A new member is a field of the table, its operations in `torch_ops`, and, where a model differentiates it, a module beside
`norm`. A new backend is a folder with a table of the members that it replaces, and a row in `choice` and `chosen`.
"""
