"""What a process runs on: device, precision, memory, CUDA graphs, the ranks of a job; and passes that can be resumed."""
