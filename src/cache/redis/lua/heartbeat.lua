-- ARGV: gen, member, fence, expiry, up to which value the member acts. The expiry is absolute, so that a renewal that arrives late
-- renews nothing.
local why = turned_away(ARGV[1], ARGV[2], ARGV[3])
if why then return { why } end
local now = clock()
set_member(ARGV[2], ARGV[4], ARGV[3])
local head = redis.call('HMGET', H, 'v', 'iv')
local reply, lapsed = { 'ok', head[1], string.format('%.0f', now), head[2] or '0', '0' }, survey(now)
for _, id in ipairs(lapsed) do
  if id ~= ARGV[2] then reply[#reply + 1] = id end
end
reply[5] = string.format('%d', #reply - 5)
if reply[4] ~= ARGV[5] then append_interest(reply) end
return reply
