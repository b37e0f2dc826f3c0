-- ARGV: gen, member, fence. A member that has nothing open goes.
local why = turned_away(ARGV[1], ARGV[2], ARGV[3])
if why then return { why } end
drop_doubts_of(ARGV[2], {})
forget_member(ARGV[2])
survey(clock())
return { 'ok' }
