-- ARGV: gen, member, fence. A member that has nothing open goes.
local why = turned_away(ARGV[1], ARGV[2], ARGV[3])
if why then return { why } end
drop_doubts_of(ARGV[2], {})
-- What it wrote without a word, before it heard of the news.
if redis.call('HGET', H, 'a:' .. ARGV[2]) ~= (redis.call('HGET', H, 'iv') or '0') then renew('0') end
forget_member(ARGV[2])
survey(clock())
return { 'ok' }
