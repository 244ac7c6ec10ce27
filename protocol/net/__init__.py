"""The network: host, streams, messages on the wire, content, DHT."""
