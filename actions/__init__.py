"""What can be asked, one module per family; each action declares its rules beside its body."""
