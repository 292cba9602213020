"""The quickstart: real shopping baskets from event streams to a trained, audited and compared model, in one command."""
