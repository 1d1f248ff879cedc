"""One file an op: the public function, its schema, fake implementation, autograd, autocast and capability table."""
