"""Every operator that a CNN meets, in its options: right, or refused by name."""
