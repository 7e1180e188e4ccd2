"""Who gets in where: without a credential, with each role, with anything at all as a request."""
