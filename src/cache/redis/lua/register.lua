-- ARGV: member, fence, expiry, lease, a name for a new generation, a new state of the catalog, whether to give the database a
-- new epoch, whether to change the catalog's state, how many tokens, tokens, server processes. Who registers acts upon what the reply tells.
local id, fence, tokens = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[9])
local now = clock()
local _, known = member(id)
if known and known >= fence then return { 'fenced' } end
if redis.call('HEXISTS', H, 'gen') == 0 then
  redis.call('DEL', H)
  redis.call('HSET', H, 'gen', ARGV[5], 'born', string.format('%.0f', now), 'lease', ARGV[4], 'v', ARGV[6], 'orphans', '1')
elseif tonumber(redis.call('HGET', H, 'lease')) < tonumber(ARGV[4]) then
  redis.call('HSET', H, 'lease', ARGV[4])
end
-- Everything that is open is in doubt, and what went on without a mark is made good, before the registration counts.
local open = {}
for i = 10, 9 + tokens do
  add_doubt('0', ARGV[i])
  open[ARGV[i]] = true
end
if ARGV[7] == '1' then renew('0') end
if ARGV[8] == '1' then change_catalog(ARGV[6]) end
drop_doubts_of(id, open)
forget_backends(id)
for i = 10 + tokens, #ARGV do redis.call('HSET', H, 'b:' .. id .. ':' .. ARGV[i], '1') end
set_member(id, ARGV[3], ARGV[2])
local number = redis.call('HGET', H, 'iv') or '0'
acts_upon(id, number)
survey(now)
local head = redis.call('HMGET', H, 'gen', 'v', 'born', 'lease')
local reply = { 'ok', head[1], head[2], string.format('%.0f', math.max(0, head[3] + head[4] - now)), number }
append_interest(reply)
return reply
