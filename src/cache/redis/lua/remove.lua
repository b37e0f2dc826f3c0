-- ARGV: gen, member, the expiry it had when its server processes were found to be gone, a new state of the catalog.
if redis.call('HGET', H, 'gen') ~= ARGV[1] then return { 'generation' } end
local expiry = member(ARGV[2])
if expiry ~= tonumber(ARGV[3]) then return { 'alive' } end
change_catalog(ARGV[4])
drop_doubts_of(ARGV[2], {})
forget_member(ARGV[2])
survey(clock())
return { 'ok' }
