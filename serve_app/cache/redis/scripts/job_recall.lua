-- The mark of a name. ARGV: now ('' for the server's clock), name. Returns it, nil when there is none.
return mark_of(ARGV[2], time_of(ARGV[1])) or nil
