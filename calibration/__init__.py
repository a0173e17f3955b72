"""What decides the numbers: the text and inputs that observers, parity checks and accuracy reports run on."""
