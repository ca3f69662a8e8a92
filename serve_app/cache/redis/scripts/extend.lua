-- Keep the value of KEYS[1] at least ARGV[1] milliseconds from now. Returns 1, or 0 when there is none.
return keep(KEYS[1], ARGV[1]) and 1 or 0
