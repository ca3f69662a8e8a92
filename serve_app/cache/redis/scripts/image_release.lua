-- Let a job's image go. KEYS: as of image_keep. ARGV: image, job id. An image that no job needs is deleted.
let_go(ARGV[1], ARGV[2])
