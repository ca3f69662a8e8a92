-- Whether a name may be stored. KEYS: meta (hash), bits. ARGV: name. Returns '1', '0', or '' for not known.
return may_be_stored(KEYS[1], KEYS[2], ARGV[1])
