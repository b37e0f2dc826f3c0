-- ARGV: gen, member, fence, how many server processes to publish, those, those to retire.
local why = turned_away(ARGV[1], ARGV[2], ARGV[3])
if why then return { why } end
for i = 5, #ARGV do
  local field = 'b:' .. ARGV[2] .. ':' .. ARGV[i]
  if i < 5 + tonumber(ARGV[4]) then redis.call('HSET', H, field, '1') else redis.call('HDEL', H, field) end
end
return { 'ok' }
