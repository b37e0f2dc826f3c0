-- KEYS: state, entry. ARGV: gen, v, nonce, the epochs of what memory holds ('' for nothing), fingerprint, oids.
local why, epochs, pending_for, new = current(ARGV[1], ARGV[2], 6, ARGV[3])
if why then return { why, epochs or '' } end
if pending_for then return { 'miss', epochs, '', string.format('%.0f', pending_for), new } end
if ARGV[4] == epochs then return { 'same' } end
local entry = redis.call('HMGET', KEYS[2], 'e', 'b')
if entry[1] == epochs and entry[2] then
  return { 'hit', epochs, entry[2], string.format('%.0f', redis.call('PTTL', KEYS[2])) }
end
return { 'miss', epochs, entry[1] and 'outdated' or '' }
