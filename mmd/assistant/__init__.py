"""One turn of a conversation: intent, candidates, the student, and the policy that decides what the reply is."""
