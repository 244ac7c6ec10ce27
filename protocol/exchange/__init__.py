"""The exchange: codecs, parts, error feedback, aggregation, outer step."""
