"""The I/O that agents and gateway share: the one way to talk to Kafka, logs, and the clock."""
