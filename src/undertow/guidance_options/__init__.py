"""What guidance methods can be told, without torch: so that a request is refused at the door by the very rules of
`diffusion.guidance`, where each record here is given what it does."""
