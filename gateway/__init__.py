"""The HTTP surface: a process of its own, with plain aiokafka and no Faust."""
