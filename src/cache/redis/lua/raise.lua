-- ARGV: gen, member, fence, token, v that the relations were computed from, server process, oids.
local why = turned_away(ARGV[1], ARGV[2], ARGV[3])
if why then return { why } end
for i = 7, #ARGV do
  add_doubt(ARGV[i], ARGV[4])
  written_unseen(ARGV[i])
end
local v = redis.call('HGET', H, 'v')
if v ~= ARGV[5] then add_doubt('0', ARGV[4]) end
redis.call('HSET', H, 'b:' .. ARGV[2] .. ':' .. ARGV[6], '1')
return { 'ok', v }
