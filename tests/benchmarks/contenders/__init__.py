"""What is compared: each module can start one kind of contender and ask it for its books."""
