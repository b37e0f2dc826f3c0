-- KEYS: state, entry. ARGV: gen, v, the epochs noted before the fill, the entry, its expiry in ms by this clock, fingerprint, oids.
local why, epochs, pending_for = current(ARGV[1], ARGV[2], 7, nil)
if why then return { why } end
if ARGV[3] ~= epochs then return { 'moved' } end
if pending_for then return { 'pending' } end
redis.call('HSET', KEYS[2], 'e', epochs, 'b', ARGV[4])
redis.call('PEXPIREAT', KEYS[2], ARGV[5])
return { 'ok' }
