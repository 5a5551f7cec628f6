"""What a process runs on: device, precision, memory, graphs, the ranks of a job; and epochs that can be resumed."""
