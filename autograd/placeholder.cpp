// A room of eigentrace; replaced by its first source file.
