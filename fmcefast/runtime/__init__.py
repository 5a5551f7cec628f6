"""What a process computes on: device and precision, the processes of a job, memory, passes that can be resumed."""
