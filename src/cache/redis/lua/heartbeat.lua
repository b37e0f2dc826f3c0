-- ARGV: gen, member, fence, expiry. The expiry is absolute, so that a renewal that arrives late renews nothing.
local why = turned_away(ARGV[1], ARGV[2], ARGV[3])
if why then return { why } end
local now = clock()
set_member(ARGV[2], ARGV[4], ARGV[3])
local reply = { 'ok', redis.call('HGET', H, 'v'), string.format('%.0f', now) }
for _, id in ipairs(survey(now)) do
  if id ~= ARGV[2] then reply[#reply + 1] = id end
end
return reply
