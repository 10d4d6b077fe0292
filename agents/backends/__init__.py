"""Model servers behind `streams.ports.Backend`."""
