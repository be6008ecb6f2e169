"""Members in C for a CPU, compiled once by the machine's own compiler: attention, what lies between the products of a layer in
bfloat16, the recurrences of Mamba-2 and of gated delta nets with their convolution, and the logits with what is made of them.
They make no temporaries where torch's operations make many."""
