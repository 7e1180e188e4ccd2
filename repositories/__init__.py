"""All SQL. Methods never commit: the processor, or a loop of the control process, opens the transaction."""
